"""The Grafana dashboards: `boards` says what they show, `grafana` makes Grafana's JSON of it."""
