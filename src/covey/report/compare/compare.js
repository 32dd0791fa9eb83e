// Runs after charts.js, whose `figures` it reads: what is saved has the colours of a light page, whatever the reader's theme.
for (const button of document.querySelectorAll("[data-save]"))
  button.addEventListener("click", () => {
    const name = button.dataset.of, node = document.querySelector(`[data-figure="${name}"]`);
    const { data, layout } = structuredClone(figures[name]);
    data.forEach((trace, index) => { trace.visible = node.data[index].visible ?? true; });
    layout.paper_bgcolor = "#ffffff";
    const size = { width: 900, height: Math.max(360, node.offsetHeight), scale: 3 };
    Plotly.downloadImage({ data, layout }, { format: button.dataset.save, filename: name, ...size });
  });
