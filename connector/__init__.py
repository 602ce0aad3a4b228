"""One participant's connector: provider and consumer at once, with its data plane, query engine and audit log."""

VERSION = "0.1.0"
