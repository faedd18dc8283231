"""The HTTP API: `altlas serve`."""
