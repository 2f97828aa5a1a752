"""Logs as lines of JSON on standard error, or coloured text on a terminal."""

import logging
import sys

import structlog


def set_up_logs(*, level: str = "info", **bound: str) -> None:
    """Configure structlog for this process; `bound` (a node's or controller's name) stands on every line."""
    number = getattr(logging, level.upper())
    terminal = sys.stderr.isatty()
    renderer = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(**bound)
