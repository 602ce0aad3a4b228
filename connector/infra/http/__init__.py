"""Inbound HTTP: limits of a listener, TLS, problem objects, strict JSON bodies."""
