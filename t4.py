import tempfile
from tests.faults.test_not_finite import *
d=Path(tempfile.mkdtemp()); p=pytest.MonkeyPatch(); leave_out_slow_parts(p)
in_what(Learner, "make_scores", "values")(p, float("nan"))
run=train_digits(d,"r",algorithm__name="ppo",algorithm__critic="head",checkpoint__every=1)
for r in run.metrics: print({k:v for k,v in r.items() if k.startswith(("update","value","critic","loss","grad"))})
assert_finite(run.path)
