"""How our processes log: a JSON object a line, on stderr, in ASCII: what a guest said stays data on a terminal too."""

import logging
import sys

import structlog


def configure() -> None:
    """From now on; what libraries log by the standard library goes the same way."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=True),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(handlers=[_Passed()], level=logging.WARNING, force=True)


class _Passed(logging.Handler):
    """Hands a library's record to our own log."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        level = max(10, min(50, record.levelno // 10 * 10))
        log.log(level, record.getMessage(), library=record.name, exc_info=record.exc_info or None)
