"""The pages a person sees: search, dataset, members and health. Server-rendered; work without JavaScript."""

from catalogue.pages.site import Site

__all__ = ["Site"]
