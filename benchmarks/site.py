"""A site around ASV's: a page in front, and no CDN behind. ``python -m benchmarks.site``, after ``asv publish``.

It lies in the folder above ASV's `html_dir`: the page, its figures in `summary.json`, and `peers.json` if there is one.
"""

import ast
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote, urlencode

__all__ = ["main"]

ROOT = Path(__file__).parents[1]
VENDOR = ROOT / ".asv" / "vendor"

# The last of the addresses from which ASV's page loads its libraries -> the npm package, the file in it.
LIBRARIES = {
    "/jquery-3.3.1.min.js": ("jquery@3.3.1", "dist/jquery.min.js"),
    "/flot/0.8.3/jquery.flot.min.js": ("flot@0.8.3", "jquery.flot.js"),
    "/flot/0.8.3/jquery.flot.time.min.js": ("flot@0.8.3", "jquery.flot.time.js"),
    "/flot/0.8.3/jquery.flot.selection.min.js": ("flot@0.8.3", "jquery.flot.selection.js"),
    "/flot/0.8.3/jquery.flot.categories.min.js": ("flot@0.8.3", "jquery.flot.categories.js"),
    "/flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": ("flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js"),
    "/stupidtable/1.0.1/stupidtable.min.js": ("stupid-table-plugin@1.1.3", "stupidtable.min.js"),
    "/blueimp-md5/2.19.0/js/md5.min.js": ("blueimp-md5@2.19.0", "js/md5.min.js"),
    "/bootstrap@3.1.1/dist/js/bootstrap.min.js": ("bootstrap@3.1.1", "dist/js/bootstrap.min.js"),
    "/bootstrap@3.1.1/dist/css/bootstrap.min.css": ("bootstrap@3.1.1", "dist/css/bootstrap.min.css"),
}
FOREIGN = re.compile(r"""<(script|link)\b[^>]*?\b(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)[^>]*>""")
LOCAL = {"script": '<script src="vendor/{}">', "link": '<link rel="stylesheet" href="vendor/{}">'}

# What the page shows -> the benchmarks that measure it
MEASURES = {
    "speed": ".FractionOfNumpy.track_fraction_of_numpy",
    "accuracy": ".MaxUlpError.track_max_ulp_error",
    "threads": ".ThreadScaling.track_thread_scaling",
}


def _fetch():
    """Fetch the libraries, unless they are here already; say whether they are now."""
    manifest = VENDOR / "package.json"
    fetched = json.loads(manifest.read_text(encoding="utf-8"))["dependencies"] if manifest.exists() else {}
    packages = {package for package, _ in LIBRARIES.values()}
    if packages <= {f"{name}@{version}" for name, version in fetched.items()}:
        return True
    npm = shutil.which("npm")
    if npm is None:
        return False
    VENDOR.mkdir(parents=True, exist_ok=True)
    options = ["--save-exact", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
    return subprocess.run([npm, "install", "--prefix", VENDOR, *options, *sorted(packages)]).returncode == 0


def _library(address):
    for ending, library in LIBRARIES.items():
        if address.endswith(ending):
            return library
    raise ValueError(f"ASV's page loads {address}, and benchmarks/site.py knows no package that has it")


def _vendor(html_dir):
    """Let ASV's page load its libraries from beside it."""
    page = html_dir / "index.html"
    text = page.read_text(encoding="utf-8")
    libraries = {address: _library(address) for _, address in FOREIGN.findall(text)}
    if not libraries:
        return
    if not _fetch():
        print("npm is missing or has no network: ASV's page loads its libraries from their CDNs, and is blank offline.")
        return

    def localized(tag):
        kind, address = tag.groups()
        package, path = libraries[address]
        source = VENDOR / "node_modules" / package.partition("@")[0] / path
        shutil.copyfile(source, html_dir / "vendor" / source.name)
        return LOCAL[kind].format(source.name)

    (html_dir / "vendor").mkdir(exist_ok=True)
    page.write_text(FOREIGN.sub(localized, text), encoding="utf-8")


def _leave_out_unmeasured(html_dir):
    """Take benchmarks that never ran off ASV's page, which asks for their graphs in vain."""
    index = html_dir / "index.json"
    found = json.loads(index.read_text(encoding="utf-8"))
    graphs = {graph.stem for graph in (html_dir / "graphs" / "summary").glob("*.json")}
    found["benchmarks"] = {name: about for name, about in found["benchmarks"].items() if name in graphs}
    index.write_text(json.dumps(found), encoding="utf-8")


def _rows(results, benchmarks, measure):
    """Yield the parameters of each measurement, its value, None if it failed, and the fragment that shows its graph."""
    for key in sorted(results.get_result_keys(benchmarks)):
        if not key.endswith(measure):
            continue
        params = results.get_result_params(key)
        for chosen, value in zip(itertools.product(*params), results.get_result_value(key, params), strict=True):
            # Skipped.
            if value is not None and math.isnan(value):
                continue
            chosen = dict(zip(benchmarks[key]["param_names"], chosen, strict=True))
            selection = urlencode({f"p-{axis}": choice for axis, choice in chosen.items()}, quote_via=quote)
            yield {axis: ast.literal_eval(choice) for axis, choice in chosen.items()} | {
                "family": key.partition(".")[0],
                "value": value if value is not None and math.isfinite(value) else None,
                "graph": f"{key}?{selection}",
            }


def _at_any_size(rows):
    """Take away a row's size where it makes no difference: it was run at a single one, and other rows at several."""
    rows = list(rows)
    for axis in ("n", "k"):
        sizes = {}
        for row in rows:
            sizes.setdefault(row["name"], set()).add(row.get(axis))
        if any(len(several) > 1 for several in sizes.values()):
            for row in rows:
                row[axis] = row[axis] if len(sizes[row["name"]]) > 1 else None
    return rows


def _last_run(results):
    return max((start for start in results.started_at.values() if start), default=None)


def summary(conf):
    """Return what the page shows: the newest commit that was measured, where, and what was found."""
    from asv.benchmarks import Benchmarks
    from asv.results import iter_results

    history = list(iter_results(conf.results_dir))
    if not history:
        raise SystemExit("nothing is measured: run asv run")
    benchmarks = Benchmarks.load(conf)
    newest = max(history, key=lambda results: (results.date, _last_run(results) or 0))
    subject = subprocess.run(
        ["git", "log", "-1", "--format=%s", newest.commit_hash], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    return {
        "commit": {"hash": newest.commit_hash, "date": newest.date, "subject": subject},
        "commits": len({results.commit_hash for results in history}),
        "measured": _last_run(newest),
        "machine": {name: newest.params.get(name) for name in ("cpu", "num_cpu", "ram", "os", "arch", "python")},
        **{name: _at_any_size(_rows(newest, benchmarks, measure)) for name, measure in MEASURES.items()},
    }


def main():
    from asv.config import Config

    conf = Config.load(ROOT / "asv.conf.json")
    conf.results_dir = str(ROOT / conf.results_dir)
    html_dir = ROOT / conf.html_dir
    site = html_dir.parent
    if not (html_dir / "index.html").exists():
        raise SystemExit("nothing is published: run asv publish")
    _vendor(html_dir)
    _leave_out_unmeasured(html_dir)
    shutil.copyfile(Path(__file__).with_name("landing.html"), site / "index.html")
    found = summary(conf) | {"peers": None}
    peers = ROOT / "docs" / "peers.json"
    if peers.exists():
        found["peers"] = shutil.copyfile(peers, site / "peers.json").name
    (site / "summary.json").write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
    print(f"The site is in {site.relative_to(ROOT)}: python -m http.server --directory {site.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
