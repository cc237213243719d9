"""The page is made by a local rule, so on a login node without torch."""

from results_tree import Story, write_results

from login_node import said


def test_the_page_is_drawn(tmp_path):
    write_results(tmp_path / "results", story=Story(images=8))
    arguments = ["--config", "config.yaml", "--results", "results", "--benchmarks", "benchmarks", "--output"]
    said("-m", "onestep", "report", *arguments, "page.html", within=tmp_path)
    assert "data:image/svg+xml" in (tmp_path / "page.html").read_text()
