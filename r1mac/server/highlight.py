"""A program's text with its words marked for a style sheet."""

from html import escape

# What a highlighter may take its time for. Longer text is shown as it stands.
_MOST_CHARACTERS = 20_000
# Name as models write it to Pygments' name. A list, so that no text chooses among six hundred parsers of any quality.
_LANGUAGES = {
    name: lexer
    for lexer, names in {
        "bash": "bash sh shell zsh console",
        "c": "c h",
        "cpp": "cpp c++ cc hpp",
        "csharp": "csharp c# cs",
        "css": "css",
        "diff": "diff patch",
        "go": "go golang",
        "haskell": "haskell hs",
        "html": "html",
        "ini": "ini",
        "java": "java",
        "javascript": "javascript js jsx mjs",
        "json": "json",
        "julia": "julia",
        "kotlin": "kotlin kt",
        "lua": "lua",
        "make": "make makefile",
        "objective-c": "objective-c objc",
        "php": "php",
        "python": "python py python3",
        "r": "r",
        "ruby": "ruby rb",
        "rust": "rust rs",
        "sql": "sql",
        "swift": "swift",
        "tex": "tex latex",
        "toml": "toml",
        "typescript": "typescript ts tsx",
        "xml": "xml",
        "yaml": "yaml yml",
    }.items()
    for name in names.split()
}


def highlighted(code: str, language: str) -> str:
    """Return *code* as HTML: spans with Pygments' classes where *language* is known, escaped text elsewhere."""
    lexer = _LANGUAGES.get(language.lower())
    if lexer is None or len(code) > _MOST_CHARACTERS:
        return escape(code)
    from pygments import highlight
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers import get_lexer_by_name

    return str(highlight(code, get_lexer_by_name(lexer, stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True)))
