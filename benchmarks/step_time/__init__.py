"""Covey against TRL: the workloads, a worker for each side, the floor. `step_time.py`, `main_job_vs_trl.py` run it."""
