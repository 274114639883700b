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
html { scroll-padding-top: .5rem; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif; }
body { overflow-wrap: break-word; }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: .5rem; top: .5rem; background: var(--paper); padding: .5rem; z-index: 2; }
nav { padding: 1rem 1.25rem 0; font-size: .9rem; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav li { margin: .2rem 0; }
nav ul ul { padding-left: .9rem; }
nav p { margin: 0 0 .3rem; font-weight: 600; }
main { padding: 0 1.25rem 4rem; max-width: 76rem; min-width: 0; }
main > p, main > ul, main > ol { max-width: 46rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 1.2rem 0 .6rem; }
h2 { font-size: 1.4rem; margin: 2.8rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.12rem; margin: 2.4rem 0 .4rem; }
h4 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
code, pre { font-family: ui-monospace, monospace; font-size: .88em; }
pre { overflow-x: auto; background: var(--band); padding: .7rem; border-radius: 6px; }
.picture { overflow-x: auto; margin: 1rem 0; }
img { display: block; width: 46rem; max-width: 100%; height: auto; }
img { background: #fff; border-radius: 6px; padding: .3rem; }
.small { color: var(--soft); font-size: .85rem; margin: .3rem 0; max-width: 60rem; }
.notice { background: var(--warn); border-left: 4px solid var(--edge); padding: .6rem .8rem; }
.scroll { overflow-x: auto; margin: .6rem 0; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; font-size: .8rem; line-height: 1.35; min-width: 100%; }
table { font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: .4rem 0; font-weight: 600; background: var(--band); }
caption span, .group span { position: sticky; left: .4rem; display: inline-block; max-width: calc(100vw - 3.4rem); }
caption span { padding: 0 .4rem; }
th, td { padding: .3rem .4rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { background: var(--band); vertical-align: bottom; white-space: normal; }
tbody:last-child tr:last-child > * { border-bottom: 0; }
th[scope=row] { font-weight: 500; }
.words, .group th { text-align: left; }
.long { white-space: normal; min-width: 11rem; }
tbody th[scope=row], thead th:first-child { position: sticky; left: 0; background: var(--paper); }
thead th:first-child { background: var(--band); }
.group th { background: var(--band); padding: .3rem 0; }
details { margin: .6rem 0; font-size: .9rem; }
details details { margin-left: 1rem; }
summary { cursor: pointer; padding: .2rem 0; }
:target { outline: 2px solid var(--edge); outline-offset: 2px; }
@media (max-width: 69.99rem) { nav ul ul { display: none; } }
@media (max-width: 36rem) {
  nav, main { padding-left: .9rem; padding-right: .9rem; }
  tbody th[scope=row] { max-width: 40vw; min-width: 0; white-space: normal; }
  .long { min-width: 9rem; }
  img { width: 36rem; max-width: none; }
  .picture::after { content: "The picture scrolls sideways."; position: sticky; left: 0; }
  .picture::after { font-size: .8rem; color: var(--soft); }
}
@media (min-width: 70rem) {
  body { display: grid; grid-template-columns: 13rem minmax(0, 1fr); column-gap: .5rem; }
  nav { position: sticky; top: 0; align-self: start; max-height: 100vh; overflow-y: auto; padding-bottom: 1rem; }
  caption span, .group span { max-width: 58rem; }
}
@media print { nav { display: none; } .scroll, .picture { overflow: visible; } }
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
