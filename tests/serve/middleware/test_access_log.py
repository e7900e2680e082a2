"""serve/middleware/access_log.py: one line per request."""

from slm_fn.serve.middleware import access_log


def test_a_line_is_written_once(caplog):
    scope = {"type": "http", "method": "GET", "path": "/x", "client": ("1.2.3.4", 5)}
    with caplog.at_level("INFO", "slm.access"):
        access_log.write_line(scope, status=499)
        access_log.write_line(scope)
    assert len(caplog.records) == 1
    assert '"status":499' in caplog.text
