"""What runs inside the sandbox: the standard library alone, nothing of Covey's, and no secret of a task."""
