"""Those who watch the serving path: logs, metrics, traces. None sees a prompt or a secret."""
