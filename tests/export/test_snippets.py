"""`README.md` beside exported files: what it says is the manifest's; nobody else's is touched."""

import json
import math
import re
import shutil
import subprocess

import pytest

from pyro_mvae import Verification, export_executorch
from pyro_mvae.export.manifest import write_manifest
from pyro_mvae.export.snippets import MARK, readme, write_readme
from tests.catalog import MODELS


def entry(part, format, path, shape, outputs):
    tensors = [{"name": name, "meaning": f"what {name} is"} for name in outputs]
    source = {"name": "z" if len(shape) == 2 else "image", "shape": shape}
    return {"part": part, "format": format, "path": path, "precision": "int8", "bytes": 1, "inputs": [source], "outputs": tensors}


FOR_CORE_ML = {"delegation": {"backend": "coreml"}, "target": "iOS18"}
FILES = [
    entry("encoder", "coreml", "encoder.mlpackage", [1, 3, 20, 24], ["loc", "scale"]),
    entry("encoder", "coreml", "encoder-float16.mlpackage", [1, 3, 20, 24], ["loc", "scale"]),
    entry("decoder", "coreml", "decoder.mlpackage", [1, 7], ["image"]),
    {**entry("encoder", "executorch", "apple.pte", [1, 1, 20, 24], ["loc", "scale"]), **FOR_CORE_ML},
    entry("encoder", "executorch", "encoder.pte", [1, 3, 20, 24], ["loc", "scale"]),
    entry("decoder", "executorch", "decoder.pte", [1, 7], ["image"]),
    entry("anomaly", "executorch", "anomaly.pte", [1, 1, 20, 24], ["score"]),
    entry("encoder", "onnx", "encoder.onnx", [1, 3, 20, 24], ["loc", "scale"]),
    entry("decoder", "onnx", "decoder.onnx", [1, 7], ["image"]),
    entry("anomaly", "onnx", "anomaly.onnx", [1, 1, 20, 24], ["score"]),
]


def snippets(language):
    page = readme({"model": {"class": "VAE"}, "files": FILES})
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.parametrize(("language", "number"), [("swift", 3), ("kotlin", 3), ("javascript", 3)])
def test_a_snippet_for_each_part(language, number):
    found = snippets(language)
    assert len(found) == number, "one a part, however many precisions there are"
    for text in found:
        for opening, closing in ("()", "{}", "[]"):
            assert text.count(opening) == text.count(closing)
        assert "$" not in re.sub(r"\$0", "", text), "everything is filled in"


def test_sizes_and_names_are_the_files():
    encoder, decoder, apple = snippets("swift")
    assert '["image": array(of: pixels(of: given))]' in encoder
    assert '["loc", "scale"]' in encoder
    assert 'forResource: "encoder"' in encoder
    assert "shape: [1, 3, 20, 24]" in encoder
    assert "(3, 20, 24, 4)" in encoder, "red, green, blue, and a byte that is not used"
    assert '["z": array(of: given)]' in decoder
    assert "shape: [1, 7]" in decoder
    assert 'forResource: "apple", ofType: "pte"' in apple
    assert "Tensor<Float>(pixels(of: given), shape: [1, 1, 20, 24])" in apple
    colour, code, grey = snippets("kotlin")
    assert "longArrayOf(1, 3, 20, 24)" in colour
    assert "Color.blue(colour))[i / colours.size]" in colour
    assert "getPixels(colours, 0, 24, 0, 0, 24, 20)" in grey
    assert "0.587f" in grey
    assert "longArrayOf(1, 7)" in code
    assert "fromBlob(given" in code
    colour, code, grey = snippets("javascript")
    assert '{ image: new ort.Tensor("float32", pixels(given), [1, 3, 20, 24]) }' in colour
    assert '["loc", "scale"].map' in colour
    assert "new OffscreenCanvas(24, 20)" in grey
    assert "0.587" in grey
    assert '{ z: new ort.Tensor("float32", given, [1, 7]) }' in code


def test_which_file_an_app_takes():
    packages = [{**FILES[0], "target": "iOS18"}, {**FILES[1], "target": "iOS16"}]
    page = readme({"model": {"class": "VAE"}, "files": [*packages, *FILES[3:]]})
    for path, where in {
        "encoder.mlpackage": "iOS18 or later",
        "encoder-float16.mlpackage": "iOS16 or later",
        "apple.pte": "iOS18 or later, in ExecuTorch",
        "encoder.pte": "Android",
        "encoder.onnx": "browsers, servers",
    }.items():
        assert f"| `{path}` | encoder | int8 | 1 | {where} |" in page
    assert "## Encoder in Swift, by ExecuTorch" in page
    assert "For `apple.pte`, iOS18 or later." in page


ORT = """
export const calls = [];
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
export const InferenceSession = {
  create: async (path) => {
    calls.push(path);
    const names = ["loc", "scale", "image", "score"];
    return { run: async (given) => Object.fromEntries(names.map((name) => [name, { data: given }])) };
  },
};
"""
CANVAS = """
import { calls } from "onnxruntime-web";
globalThis.OffscreenCanvas = class {
  constructor(width, height) { this.pixels = { width, height }; }
  getContext() {
    const { width, height } = this.pixels;
    const data = Uint8ClampedArray.from({ length: 4 * width * height }, (_, i) => 50 * (i % 4));
    return { fillRect() {}, drawImage() {}, getImageData: () => ({ data }) };
  }
};
const { $PART } = await import("./snippet.mjs");
const given = $GIVEN;
for (let turn = 0; turn < 2; turn++) {
  const found = (await $PART(given)).map((data) => Object.values(data)[0]);
  const seen = found.map(({ type, data, dims }) => [type, dims, data.length, Array.from(data.slice(-2))]);
  console.log(JSON.stringify([calls, seen]));
}
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="no node to run JavaScript")
@pytest.mark.parametrize("number", range(3))
def test_javascript_runs(number, tmp_path):
    """Against a runtime and a canvas that say what they were given: the file is loaded once, pixels lie channel by channel."""
    part, shape, outputs = [("encoder", [1, 3, 20, 24], 2), ("decoder", [1, 7], 1), ("anomaly", [1, 1, 20, 24], 1)][number]
    runtime = tmp_path / "node_modules/onnxruntime-web"
    runtime.mkdir(parents=True)
    (runtime / "package.json").write_text('{"name": "onnxruntime-web", "type": "module", "exports": "./index.js"}')
    (runtime / "index.js").write_text(ORT)
    (tmp_path / "snippet.mjs").write_text(snippets("javascript")[number])
    given = "new Float32Array([1, 2, 3, 4, 5, 6, 7])" if len(shape) == 2 else "{ width: 40, height: 40 }"
    (tmp_path / "run.mjs").write_text(CANVAS.replace("$PART", part).replace("$GIVEN", given))
    shown = subprocess.run(["node", "run.mjs"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    grey = 0.587 * 50 + 0.114 * 100
    last = {"encoder": [100, 100], "decoder": [6, 7], "anomaly": [pytest.approx(grey), pytest.approx(grey)]}[part]
    for line in shown.splitlines():
        calls, found = json.loads(line)
        assert calls == [f"{part}.onnx"]
        assert found == [["float32", shape, math.prod(shape), last]] * outputs
    assert len(shown.splitlines()) == 2


def test_files_are_loaded_once_and_in_the_version_they_were_verified_with():
    for text in snippets("swift"):
        assert re.search(r"^private let (loaded|module) = ", text, re.MULTILINE), "once, outside of any function"
        assert text.count("MLModel(contentsOf") + text.count("Module(filePath") == 1
    for text in snippets("kotlin"):
        assert "private val module = Module.load(path, Module.LOAD_MODE_FILE, 1)" in text
        assert "module.destroy()" in text
    versions = {"executorch": "1.2", "onnxruntime": "3.4"}
    page = readme({"model": {"class": "VAE"}, "files": [{**each, "versions": versions} for each in FILES]})
    assert "`decoder.pte`, with `org.pytorch:executorch-android` of Maven, 1.2 here." in page
    assert "`decoder.onnx`, with `onnxruntime-web` of npm, 3.4 here." in page


def test_what_a_file_asks_of_where_it_runs_is_said():
    """Integers that some phones compute wrong stay on the CPU, whichever function of a package is loaded."""
    file = entry("decoder", "coreml", "decoder.mlpackage", [1, 7], ["image"])
    plain = {"target": "iOS16", "caution": None}
    careful = {"target": "iOS17", "caution": "mind this"}
    for about, systems, settings in (
        (plain, "iOS16", []),
        (careful, "iOS17", [".cpuOnly  // mind this"]),
        ({**plain, "function": "decoder"}, "iOS16", ['functionName = "decoder"']),
        ({**careful, "function": "decoder"}, "iOS17", ['functionName = "decoder"', ".cpuOnly  // mind this"]),
    ):
        page = readme({"model": {"class": "VAE"}, "files": [{**file, **about}]})
        assert f"`decoder.mlpackage`, {systems} or later." in page
        assert [line.strip().partition(" = ")[0] for line in page.splitlines() if line.strip().startswith("configuration.")] == [
            "configuration.functionName" if "function" in each else "configuration.computeUnits" for each in settings
        ]
        assert all(each in page for each in settings)
        assert ("MLModelConfiguration()" in page) == bool(settings)
    onnx = {**entry("decoder", "onnx", "decoder.onnx", [1, 7], ["image"]), "opset": 18}
    assert "`decoder.onnx`, operator set 18." in readme({"model": {"class": "VAE"}, "files": [onnx]})


def test_it_says_that_it_was_not_compiled():
    page = readme({"model": {"class": "VAE"}, "files": FILES})
    assert page.count("neither compiled nor run") == 9


def test_it_is_written_again_and_nobody_elses_is(tmp_path):
    model = MODELS["VAE"]((1, 16, 16)).eval()
    found: Verification = export_executorch(model, tmp_path / "decoder.pte")
    write_manifest(tmp_path, model, [found])
    write_readme(tmp_path)
    first = (tmp_path / "README.md").read_text()
    assert first.startswith(MARK)
    (tmp_path / "README.md").write_text(first + "old")
    write_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == first
    (tmp_path / "README.md").write_text("# My own")
    write_readme(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# My own"
