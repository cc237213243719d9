"""The page is drawn by a local rule, so on a login node, which has no torch."""

from results_tree import CONFIG, Story, write_results

from login_node import said


def test_the_page_is_drawn(tmp_path):
    write_results(tmp_path / "results", story=Story())
    (tmp_path / "config.yaml").write_text(CONFIG)
    arguments = ["--config", "config.yaml", "--results", "results", "--benchmarks", "benchmarks", "--output"]
    said("-m", "onestep", "report", *arguments, "page.html", within=tmp_path)
    assert "<svg" in (tmp_path / "page.html").read_text()
