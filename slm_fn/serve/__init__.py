"""The HTTP server: OpenAI's protocol, the chat page, and the scheduler that owns the engine.

Order: protocol, api_keys, config, middleware, scheduler, services, routes, app, server.

A file or sub-package imports from itself and from those named before it.
"""

from typing import TYPE_CHECKING

import slm_fn

if not TYPE_CHECKING:
    __getattr__ = slm_fn.lazy_submodules(__name__)
