#!/usr/bin/env python3
"""Looks at the links of all pages (*.md) of this repository: each leads to a file, and a heading, that is there, and
README.md leads to every page of docs/. Prints what is wrong, and fails then."""
import glob
import os
import re
import sys

os.chdir(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
names = glob.glob("*.md") + glob.glob("docs/**/*.md", recursive=True) + glob.glob("examples/**/*.md", recursive=True)
# Without code.
pages = {name: re.sub(r"^```.*?^```", "", open(name).read(), flags=re.DOTALL | re.MULTILINE) for name in names}


def anchors(text):
    """As GitHub makes them of headings; of equal ones the second has -1, and so on."""
    found = {}
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found[slug] = found.get(slug, -1) + 1
        yield slug + (f"-{found[slug]}" if found[slug] else "")


headings = {page: set(anchors(text)) for page, text in pages.items()}
wrong, linked = [], {}
for page, text in pages.items():
    linked[page] = set()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        path = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        linked[page].add(path)
        if not os.path.exists(path):
            wrong.append(f"{page}: {target} leads nowhere")
        elif anchor and anchor not in headings.get(path, ()):
            wrong.append(f"{page}: {target} leads to no heading of {path}")
wrong += [f"README.md: no link to {page}" for page in pages if page.startswith("docs/") and page not in linked["README.md"]]
print("\n".join(wrong), end="\n" if wrong else "")
sys.exit(bool(wrong))
