"""HTML and CSS of the report's page, for light and dark, wide and narrow, screen and print."""

from string import Template

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root {
  --paper: #ffffff; --ink: #1c2024; --soft: #5a626b; --line: #d9dde2;
  --band: #f4f6f8; --link: #0b57a4; --warn: #fff3d6; --edge: #b27a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e4e7ea; --soft: #a3abb4; --line: #363c44;
    --band: #1e2329; --link: #86b9f2; --warn: #3a2f12; --edge: #d9a63a;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
body { overflow-wrap: break-word; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: .5rem; top: .5rem; background: var(--paper); padding: .5rem; z-index: 2; }
nav { padding: 1rem 1.25rem 0; font-size: .9rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: .2rem 0; }
nav .level3 { padding-left: .9rem; }
nav p { margin: 0 0 .3rem; font-weight: 600; }
main { padding: 0 1.25rem 4rem; max-width: 72rem; min-width: 0; }
main > p, main > ul, main > ol, main > blockquote { max-width: 46rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1.2rem 0 .6rem; }
h2 { font-size: 1.4rem; margin: 2.8rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 2.2rem 0 .4rem; }
a { color: var(--link); }
a:focus-visible, .scroll:focus-visible, summary:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, monospace; font-size: .88em; }
pre { overflow-x: auto; background: var(--band); padding: .7rem; border-radius: 6px; }
img { display: block; max-width: min(100%, 46rem); height: auto; margin: 1rem 0; }
img { background: #fff; border-radius: 6px; padding: .3rem; }
.title { font-weight: 600; margin: 1.4rem 0 .2rem; max-width: none; }
.small { color: var(--soft); font-size: .85rem; margin: .3rem 0; }
.notice { background: var(--warn); border-left: 4px solid var(--edge); padding: .6rem .8rem; }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; font-size: .82rem; line-height: 1.35; min-width: 100%; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
th[scope=row] { font-weight: 500; }
.words, .scroll th:first-child { text-align: left; }
td.words, th.long { white-space: normal; min-width: 9rem; text-align: left; }
tbody th:first-child { position: sticky; left: 0; background: var(--paper); }
details { margin: .6rem 0 1.4rem; font-size: .85rem; color: var(--soft); }
summary { cursor: pointer; }
:target { outline: 2px solid var(--edge); outline-offset: 2px; }
@media (max-width: 69.99rem) { nav .level3 { display: none; } }
@media (max-width: 36rem) {
  nav, main { padding-left: .9rem; padding-right: .9rem; }
  tbody th:first-child { max-width: 42vw; white-space: normal; }
}
@media (min-width: 70rem) {
  body { display: grid; grid-template-columns: 14rem minmax(0, 1fr); column-gap: 1rem; }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding-bottom: 1rem; }
}
@media print { nav { display: none; } .scroll { overflow: visible; } }
</style>
</head>
<body>
<a class="skip" href="#content">To the content</a>
<nav aria-label="Contents">
<p>Contents</p>
$contents
</nav>
<main id="content">
$body
</main>
</body>
</html>
""")
"""The page as a `string.Template` of title, contents and body, all HTML."""
