// Draws the charts whose numbers stand in #figures, in the colours of the reader's theme.
const { figures, dark: darkColours } = JSON.parse(document.getElementById("figures").textContent);
const darkTheme = matchMedia("(prefers-color-scheme: dark)");
const config = { responsive: true, displayModeBar: false, scrollZoom: false, doubleClick: false, showTips: false };
let unit = "steps";

function themed(figure) {
  let text = JSON.stringify(figure);
  if (darkTheme.matches)
    for (const [light, dark] of Object.entries(darkColours)) text = text.replaceAll(light, dark);
  return JSON.parse(text);
}

function draw() {
  for (const node of document.querySelectorAll("[data-figure]")) {
    const { data, layout } = themed(figures[node.dataset.figure]);
    const moving = data.filter((trace) => trace.meta);
    for (const trace of moving) trace.x = trace.meta[unit];
    if (moving.length) layout.xaxis.title.text = unit;
    Plotly.react(node, data, layout, config);
  }
}

for (const button of document.querySelectorAll("[data-unit]"))
  button.addEventListener("click", () => {
    unit = button.dataset.unit;
    for (const other of document.querySelectorAll("[data-unit]")) other.ariaPressed = String(other === button);
    draw();
  });
darkTheme.addEventListener("change", draw);
draw();
