"""Parity with TRL 1.16: the same tokens, rewards and weights through TRL's trainers and through Covey's learner.

    pip install trl==1.16.0
    python benchmarks/parity_trl.py           # compare; writes benchmarks/results/parity_trl.json
    python benchmarks/parity_trl.py --docs    # write these results into docs/parity.md; needs no TRL

The model is tiny and random, so it runs on a CPU in about a minute. TRL's own code computes the old and the reference
log-probs, the advantages and the loss; only its sampling is replaced, by fixed completions. Each case is compared in
float32 and in float64. A case that differs by design is compared twice, as it is and adjusted. It ends with an error if a
case does not do what it says.

The package `parity`, beside this file, has the parts: the fixture, the two sides, the cases, the comparison, the report.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import logging
import sys
import warnings

from parity.report import TOLERANCES, failed_names, write_page, write_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this text; nothing is written then")
    parser.add_argument("--docs", action="store_true", help="compare nothing; write the results into docs/parity.md")
    arguments = parser.parse_args()
    if arguments.docs:
        write_page()
        return
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    from parity.comparison import examine_cases  # Here, since --docs needs no TRL.

    records = examine_cases(arguments.only)
    failed = failed_names(records)
    print(f"{len(records) - len(failed)} of {len(records)} cases pass (largest absolute differences below {TOLERANCES})")
    if not arguments.only:
        write_results(records)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
