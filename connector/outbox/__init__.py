"""Delivery of committed messages: protocol messages, webhooks, pushes."""
