#!/usr/bin/env python3
"""Compiles and links every ```cpp block with an `int main` in README.md and docs/.

    examples.py ROOT COMPILER [FLAG...]    LIBRARIES are among the flags, after the source
"""
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root, compiler, flags = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
BLOCK = re.compile(r"^```cpp\n(.*?)^```", re.MULTILINE | re.DOTALL)


def examples():
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        text = page.read_text()
        for match in BLOCK.finditer(text):
            if "int main" in match.group(1):
                yield page.relative_to(root), text[: match.start()].count("\n") + 2, match.group(1)


def compiled(example, folder):
    page, line, code = example
    source = Path(folder) / f"{page.stem}_{line}.cpp"
    source.write_text(f'#line {line} "{page}"\n{code}')
    command = [compiler, "-std=c++20", "-Wall", "-Wextra", "-Werror", source, "-o", source.with_suffix(""), *flags]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{page}:{line}", run.returncode, run.stderr


with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as workers:
    results = list(workers.map(lambda example: compiled(example, folder), examples()))
for place, code, words in results:
    print(f"{place}: {'ok' if code == 0 else 'DOES NOT COMPILE'}\n{words}", end="")
failed = sum(1 for _, code, _ in results if code != 0)
print(f"{len(results)} examples, {failed} failed")
sys.exit(1 if failed or not results else 0)
