"""The data plane over HTTP: routes, request schemas, and sending of buffers and files."""
