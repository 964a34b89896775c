"""The demonstration with real meshes and real weights, at a small size: `python -m launch.pose demo`."""

import json

import pytest

from launch import fetch_assets, pose


@pytest.mark.slow
def test_demo_at_small_size(tmp_path, capsys):
    assets = fetch_assets.folder()
    missing = [name for name in ("dinov2", "meshes") if not (assets / fetch_assets.ASSETS[name].file).is_file()]
    if missing:
        pytest.skip(f"{assets} lacks {', '.join(missing)}; python -m launch.fetch_assets --only dinov2,meshes fetches")
    argv = ["demo", "--assets", str(assets), "--out", str(tmp_path / "run"), "--count", "train=32,val=8", "--steps",
            "16", "--workers", "1"]
    summary = pose.main(argv)
    printed = capsys.readouterr().out
    assert set(summary["scores"]) == {"trained features", "random features"}
    for scores in summary["scores"].values():
        assert scores["overall"]["n"] == 8 and 0 <= scores["overall"]["error"]["value"] <= 180
    assert "never-seen meshes" in printed and "one constant pose" in printed
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["scores"] == json.loads(json.dumps(
        summary["scores"]))
    again = pose.main(argv)                 # everything is there: scored again, the same
    assert again["scores"] == summary["scores"]
