"""The dashboards that come with Sandspan: finds and copies their files, and provisions them in Langfuse."""
