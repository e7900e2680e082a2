"""serve/static: markdown.js, stream.js and store.js, imported one by one in a browser."""

import random
from pathlib import Path

import pytest
from browser import (
    launch_chromium,
    open_page,
)

import slm_fn.serve

STATIC = Path(slm_fn.serve.__file__).parent / "static"
DRAW = """async (texts) => {
  const { draw } = await import("/markdown.js");
  return texts.map((text) => {
    const element = document.createElement("div");
    draw(element, text);
    for (const bar of element.querySelectorAll(".bar")) bar.replaceWith(bar.querySelector("span"));
    return element.innerHTML;
  });
}"""
LINK = ' rel="noopener noreferrer nofollow" target="_blank"'


@pytest.fixture(scope="module")
def page(server):
    with launch_chromium() as browser, open_page(browser, server.url) as page:
        yield page


def code(lang, text):
    return f'<div class="code"><span>{lang}</span><pre tabindex="0"><code>{text}</code></pre></div>'


VALID = {
    "plain": "<p>plain</p>",
    "one\ntwo\n\nthree": "<p>one<br>two</p><p>three</p>",
    "*a* **b** ***c***": "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em></p>",
    "_d_ __e__ ~~f~~": "<p><em>d</em> <strong>e</strong> <del>f</del></p>",
    "**a *b* c**": "<p><strong>a <em>b</em> c</strong></p>",
    "*a **b** c": "<p>*a <strong>b</strong> c</p>",
    "snake_case_name 2*3*4 2 * 3 * 4 a~b~": "<p>snake_case_name 2<em>3</em>4 2 * 3 * 4 a~b~</p>",
    "**bold": "<p>**bold</p>",
    "`a*b*` ``x ` y`` `open": "<p><code>a*b*</code> <code>x ` y</code> `open</p>",
    r"\*a\* \\ \q": r"<p>*a* \ \q</p>",
    "# A\n## B ##\n#### D": "<h3>A</h3><h4>B</h4><h5>D</h5>",
    "#hash": "<p>#hash</p>",
    "a\n***\nb": "<p>a</p><hr><p>b</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1) a\n2. b": '<ol><li>a</li></ol><ol start="2"><li>b</li></ol>',
    "- a\n\n- b": "<ul><li><p>a</p></li><li><p>b</p></li></ul>",
    "- a\n\nb": "<ul><li>a</li></ul><p>b</p>",
    "1. a\n   ```py\n   x\n     y\n   ```\n2. b": (
        f"<ol><li>a{code('py', f'x{chr(10)}  y')}</li><li>b</li></ol>"
    ),
    "* a\nwrapped": "<ul><li>a<br>wrapped</li></ul>",
    "> a\n> > b\nc": "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>",
    "```js\n<b>&\n```\nafter": f"{code('js', '&lt;b&gt;&amp;')}<p>after</p>",
    "````md\n```js\nx\n```\n````": code("md", "```js\nx\n```"),
    "~~~\n```\n~~~": code("code", "```"),
    "```\nstill open\n\n**code**": code("code", "still open\n\n**code**"),
    "| a | b |\n|--:|:-:|\n| 1 | `2` |\n| 3 \\| 4 |": (
        '<div class="wide" role="region" aria-label="Table" tabindex="0"><table><thead><tr>'
        '<th class="right" scope="col">a</th><th class="center" scope="col">b</th></tr></thead>'
        "<tbody>"
        '<tr><td class="right">1</td><td class="center"><code>2</code></td></tr>'
        '<tr><td class="right">3 | 4</td><td class="center"></td></tr></tbody></table></div>'
    ),
    "a | b": "<p>a | b</p>",
    "[a *b*](https://x.org/y_z_)": f'<p><a href="https://x.org/y_z_"{LINK}>a <em>b</em></a></p>',
    "see https://x.org/a_b_(c). Or <mailto:a@b.org>": (
        f'<p>see <a href="https://x.org/a_b_(c)"{LINK}>https://x.org/a_b_(c)</a>.'
        f' Or <a href="mailto:a@b.org"{LINK}>mailto:a@b.org</a></p>'
    ),
    "[a [b](https://x.org) c](mailto:a)": (
        f'<p>[a <a href="https://x.org/"{LINK}>b</a> c](mailto:a)</p>'
    ),
    "[https://x.org](https://y.org)": f'<p><a href="https://y.org/"{LINK}>https://x.org</a></p>',
    '[a](<https://x.org> "title") [b] [c](d e': (
        f'<p><a href="https://x.org/"{LINK}>a</a> [b] [c](d e</p>'
    ),
    "![a cat](https://x.org/c.png)": (
        f'<p><a href="https://x.org/c.png"{LINK}>[image: a cat]</a></p>'
    ),
}
ATTACKS = {
    "<script>alert(1)</script>": "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>",
    "<img src=x onerror=alert(1)>": "<p>&lt;img src=x onerror=alert(1)&gt;</p>",
    "[x](javascript:alert(1))": "<p><span>x</span></p>",
    "[x](JaVaScRiPt:alert(1))": "<p><span>x</span></p>",
    "[x](<java\tscript:alert(1)>)": "<p><span>x</span></p>",
    "[x](\x01javascript:alert(1))": "<p><span>x</span></p>",
    "[x](data:text/html,<script>)": "<p>[x](data:text/html,&lt;script&gt;)</p>",
    "[x](data:text/html;base64,PHNjcmlwdD4=)": "<p><span>x</span></p>",
    "[x](vbscript:x) [y](file:///etc/passwd)": "<p><span>x</span> <span>y</span></p>",
    "[z](blob:https://x.org/1)": "<p><span>z</span></p>",
    "[x](/v1/models) [y](//evil.example) [z](#top)": (
        "<p><span>x</span> <span>y</span> <span>z</span></p>"
    ),
    "<javascript:alert(1)>": "<p>&lt;javascript:alert(1)&gt;</p>",
    '[x](https://x.org/"onmouseover="alert`1`)': (
        f'<p><a href="https://x.org/%22onmouseover=%22alert%601%60"{LINK}>x</a></p>'
    ),
    '![x" onerror="alert(1)](javascript:alert(1))': (
        '<p><span>[image: x" onerror="alert(1)]</span></p>'
    ),
    '```"><script>alert(1)</script>\nx\n```': code(
        '"&gt;&lt;script&gt;alert(1)&lt;/script&gt;', "x"
    ),
    "&lt;b&gt;": "<p>&amp;lt;b&amp;gt;</p>",
}


@pytest.mark.parametrize("table", [VALID, ATTACKS], ids=["valid", "attacks"])
def test_markdown_is_drawn_and_nothing_else(page, table):
    assert dict(zip(table, page.evaluate(DRAW, list(table)), strict=True)) == table


FRAGMENTS = [
    *"*_`~[]()!<>#-+|\\\n \t",
    "\n\n",
    "**",
    "```",
    "~~~",
    "- ",
    "1. ",
    "> ",
    "](",
    "word",
    "né🙂",
    "    ",
    "|-|-|\n",
]
FRAGMENTS += [
    "https://x.org/",
    "javascript:alert(1)",
    "<script>",
    "<img src=x onerror=alert(1)>",
    "data:text/html,x",
    "\r\n",
    "\0",
]
CHECK = """async (texts) => {
  const { draw } = await import("/markdown.js");
  const inline = "BR EM STRONG DEL CODE A SPAN BUTTON svg path";
  const blocks = "P H3 H4 H5 H6 HR UL OL LI BLOCKQUOTE DIV PRE TABLE THEAD TBODY TR TH TD";
  const tags = new Set(`${inline} ${blocks}`.split(" ")), problems = [];
  for (const text of texts) {
    const once = document.createElement("div"), inSteps = document.createElement("div");
    draw(once, text);
    for (let end = 1; end <= text.length; end += 3) draw(inSteps, text.slice(0, end));
    draw(inSteps, text);
    if (once.innerHTML !== inSteps.innerHTML) problems.push(["in steps", text]);
    for (const element of once.querySelectorAll("*")) {
      if (!tags.has(element.tagName)) problems.push([element.tagName, text]);
      const isUnsafe = (name) => /^on|^src|^style/.test(name);
      if (element.getAttributeNames().some(isUnsafe)) problems.push(["attribute", text]);
      const isLink = element.tagName === "A";
      if (isLink && !/^(https?|mailto):/.test(element.href)) problems.push([element.href, text]);
    }
  }
  return problems;
}"""


def test_every_text_is_safe_and_drawing_it_in_steps_gives_the_same(page):
    rng = random.Random(5)
    texts = ["".join(rng.choices(FRAGMENTS, k=rng.randint(1, 40))) for _ in range(400)]
    assert page.evaluate(CHECK, texts) == []


REPEATED = [
    "*a ",
    "**",
    "_a*",
    "[",
    "![",
    "](",
    "[a](",
    "[a](b",
    "[[a](https://x.org) ",
    "![![a](https://x.org) ",
    "`",
    "`a``",
    "<",
    "~~a",
]
REPEATED += [
    "> ",
    "- ",
    "  - a\n",
    "> a\n- b\n",
    "| a ",
    "|-",
    "https://x.org ",
    "http://!!",
    "a\n",
    "#",
    "# #\n",
    "```\n",
    " ",
    "\\",
    "\n",
    "1. ",
]
TIME = """async (parts) => {
  const { draw } = await import("/markdown.js");
  return parts.map((part) => {
    const began = performance.now();
    const mirrored = [...part].reverse().join("");
    draw(document.createElement("div"), part.repeat(20000 / part.length));
    const count = 5000 / part.length;
    draw(document.createElement("div"), `${part.repeat(count)}a ${mirrored.repeat(count)}`);
    return [part, performance.now() - began];
  });
}"""


def test_drawing_takes_linear_time(page):
    slow = [
        (part, milliseconds)
        for part, milliseconds in page.evaluate(TIME, REPEATED)
        if milliseconds > 1000
    ]
    assert slow == []


READ = """async ([bytes, width]) => {
  const { payloads } = await import("/stream.js");
  const body = new ReadableStream({
    start(to) {
      for (let start = 0; start < bytes.length; start += width) {
        to.enqueue(new Uint8Array(bytes.slice(start, start + width)));
      }
      to.close();
    },
  });
  const read = [];
  for await (const payload of payloads(body)) read.push(payload);
  return read;
}"""


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("width", [1, 2, 3, 5, 1000])
def test_a_stream_gives_the_same_events_for_every_chunk_size(page, end, width):
    lines = [
        ": stay",
        "",
        "data: né 🙂",
        "",
        "event: x",
        "data:two",
        "data: lines",
        "id: 1",
        "",
        "data",
        "",
        "data: [DONE]",
        "",
        "x",
    ]
    assert page.evaluate(READ, [list(end.join(lines).encode()), width]) == [
        "né 🙂",
        "two\nlines",
        "[DONE]",
    ]


FAIL = """async (text) => {
  const { events } = await import("/stream.js");
  const read = [];
  try {
    for await (const event of events(new Response(text).body)) read.push(event);
  } catch (error) {
    return [read.length, error.kind, error.message];
  }
  return [read.length];
}"""


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ('data: {"a":1}\n\ndata: [DONE]\n\ndata: {"late":1}\n\n', [1]),
        ('data: {"a":1}\n\n', [1, "broken", "The connection ended before the reply did."]),
        (
            'data: {"a":1}\n\ndata: <html>\n\n',
            [1, "broken", "The server sent something that is not JSON."],
        ),
        ('data: {"error":{"message":"it failed"}}\n\n', [0, "broken", "it failed"]),
    ],
)
def test_a_stream_ends_with_done_or_an_error(page, text, ends):
    assert page.evaluate(FAIL, text) == ends


def test_the_key_is_sent_to_its_own_origin_only(page):
    context, sent = page.context.browser.new_context(bypass_csp=True), []

    def answer(route):
        sent.append(route.request.all_headers().get("authorization"))
        route.fulfill(json={"data": [{"id": "m"}]}, headers={"Access-Control-Allow-Origin": "*"})

    context.route("**/v1/models", answer)
    free = context.new_page()
    with free.expect_response("**/v1/models"):  # the page's own request when it opens
        free.goto(page.url)
    sent.clear()
    request_model = (
        "async (server) => (await (await import('/stream.js')).model(new URL(server), 'secret')).id"
    )
    assert [
        free.evaluate(request_model, server) for server in (page.url, "https://other.example/")
    ] == [
        "m",
        "m",
    ]
    assert sent == ["Bearer secret", None]
    context.close()


def test_stored_values_are_validated_when_read(page):
    kept = page.evaluate("""async () => {
      const { open, settings, storage } = await import("/store.js");
      const store = open(localStorage), messages = [{ role: "user", content: "hello" }];
      const chat = { id: "a", title: "", changed: 2, messages };
      const systemOnly = { ...chat, messages: [{ role: "system", content: "" }] };
      const bad = ["{", "null", "[]", JSON.stringify(systemOnly)];
      bad.forEach((text, i) => localStorage.setItem(`slm_fn/chat/bad${i}`, text));
      store.put(chat);
      const all = store.all().map(({ id }) => id);
      store.remove("a");
      const forbidden = { get() { throw new DOMException("no", "SecurityError"); } };
      Object.defineProperty(window, "localStorage", forbidden);
      const memory = open(storage("localStorage"));
      memory.put(chat);
      const sampling = { temperature: "0.5", top_p: 7, seed: 1.5, top_k: "", n: 3 };
      return [all, memory.all().length, settings({ system: 5, sampling })];
    }""")
    assert kept == [["a"], 1, {"system": "", "sampling": {"temperature": 0.5}}]


def test_files_are_short_and_insert_no_markup():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path.name
        for banned in (
            "innerHTML",
            "outerHTML",
            "insertAdjacentHTML",
            "document.write",
            "eval(",
            "new Function",
            "http-equiv",
            "document.cookie",
        ):
            assert banned not in text, f"{path.name}: {banned}"
        if path.suffix == ".js":
            assert "\n// Invariant: " in text, path.name
