"""`covey plan`: what a recipe will need on this machine, in memory and in seconds a step, before anything is trained.

cost.py     the model: a pure function of the recipe's numbers and of measured rates
memory.py   what lies in memory, part by part
lengths.py  how long completions will be, as far as a few of them can tell
probe.py    the rates of this machine, measured on the recipe's own model, engine and learner
machine.py  how fast bare products are, how much memory there is
predict.py  from a recipe to its plan
text.py     the plan as a table and as JSON
"""

from covey.plan.predict import Plan, plan_recipe
from covey.plan.text import plan_json, plan_lines

__all__ = ["Plan", "plan_json", "plan_lines", "plan_recipe"]
