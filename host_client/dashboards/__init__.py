"""The dashboards that come with Sandspan: where their files are, and how they get into a backend."""
