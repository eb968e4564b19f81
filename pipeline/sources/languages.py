"""Programming languages by the endings of their files' names."""

from __future__ import annotations

LANGUAGE_SUFFIXES: dict[str, tuple[str, ...]] = {
    "assembly": (".asm", ".s"),
    "c": (".c", ".h"),
    "cpp": (".cc", ".cpp", ".cxx", ".hh", ".hpp", ".hxx"),
    "csharp": (".cs",),
    "css": (".css",),
    "cuda": (".cu", ".cuh"),
    "fortran": (".f", ".f90", ".f95"),
    "go": (".go",),
    "haskell": (".hs",),
    "html": (".htm", ".html"),
    "java": (".java",),
    "javascript": (".cjs", ".js", ".jsx", ".mjs"),
    "julia": (".jl",),
    "kotlin": (".kt", ".kts"),
    "lua": (".lua",),
    "markdown": (".markdown", ".md"),
    "perl": (".pl", ".pm"),
    "php": (".php",),
    "python": (".py", ".pyi"),
    "r": (".r", ".R"),
    "ruby": (".rb",),
    "rust": (".rs",),
    "scala": (".scala",),
    "shell": (".bash", ".sh"),
    "sql": (".sql",),
    "swift": (".swift",),
    "typescript": (".ts", ".tsx"),
}
