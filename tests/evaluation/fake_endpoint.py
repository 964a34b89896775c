"""A server on this machine that speaks OpenAI's or Anthropic's format, and misbehaves on demand."""

import base64
import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Fake:
    """What the server does, and what it was asked.

    Attributes:
        answer: (question, number of the request) -> text, or (status, headers, body), or "hang".
        requests: (path, headers, body) of every request, in order of arrival.
        delay: seconds before every answer.
    """

    def __init__(self, answer):
        self.answer, self.requests, self.delay, self.url = answer, [], 0.0, ""
        self.lock = threading.Lock()


def text_of(body):
    """The question in a request's body, in either format."""
    return next(part["text"] for part in body["messages"][0]["content"] if part["type"] == "text")


def picture_of(body):
    """(media type, bytes) of the picture in a request's body."""
    part = next(part for part in body["messages"][0]["content"] if part["type"] != "text")
    if part["type"] == "image":
        return part["source"]["media_type"], base64.b64decode(part["source"]["data"])
    head, _, data = part["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(data)


@contextlib.contextmanager
def serving(answer):
    """A running `Fake`; requests that hang are let go at the end."""
    fake, over = Fake(answer), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            with fake.lock:
                fake.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                number = len(fake.requests)
            time.sleep(fake.delay)
            said = fake.answer(text_of(body), number)
            if said == "hang":
                over.wait(20)
                return
            status, headers, content = said if isinstance(said, tuple) else (200, {}, None)
            if content is None:
                content = json.dumps(
                    {"content": [{"type": "text", "text": said}], "usage": {"input_tokens": 10, "output_tokens": 2}}
                    if self.path.endswith("/messages") else
                    {"choices": [{"message": {"content": said}}],
                     "usage": {"prompt_tokens": 10, "completion_tokens": 2}})
            with contextlib.suppress(ConnectionError):
                self.send_response(status)
                for key, value in {"content-length": str(len(content)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                self.wfile.write(content.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    fake.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield fake
    finally:
        over.set()
        server.shutdown()
        server.server_close()
