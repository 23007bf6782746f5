"""The service: sessions over HTTP and Server-Sent Events, for many readers, with approvals by people."""
