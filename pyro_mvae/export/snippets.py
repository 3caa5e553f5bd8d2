"""How an app loads exported files: `README.md` beside them, with a snippet for each part in Swift, Kotlin and JavaScript."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from pyro_mvae.atomic import write_text
from pyro_mvae.export.manifest import IN_EXECUTORCH, describe, one_a_part, runtime_of

NAME = "README.md"
MARK = "<!-- written by pyro-mvae from manifest.json -->"
LANGUAGES = {"coreml": "Swift", IN_EXECUTORCH: "Swift", "executorch": "Kotlin", "onnx": "JavaScript"}
RUNTIMES = {
    IN_EXECUTORCH: ("`executorch` and `backend_coreml` of the Swift package ExecuTorch", "executorch"),
    "executorch": ("`org.pytorch:executorch-android` of Maven", "executorch"),
    "onnx": ("`onnxruntime-web` of npm", "onnxruntime"),
}
"""What apps load files with, and the distribution that has the same version here."""
WHERE = {"coreml": "{}", IN_EXECUTORCH: "{}, in ExecuTorch", "executorch": "Android", "onnx": "browsers, servers"}
WHICH = (
    "An app takes one file of each part it needs: of those without a caution whose system is no newer than the oldest it is for, "
    "and which take pictures as it has them, the smallest. "
    "What rounding costs is under `verified` in `manifest.json`; files of one precision were rounded alike."
)
NOT_COMPILED = "It was neither compiled nor run where the files were made."

SWIFT_LOAD = "return try MLModel(contentsOf: package)"
SWIFT_CONFIGURED = Template("""\
let configuration = MLModelConfiguration()
    $settings
    return try MLModel(contentsOf: package, configuration: configuration)""")
SWIFT_ONCE = Template("""\
/// Loaded at the first call, and kept: loading takes longer than a call.
private let loaded = Result<MLModel, Error>(catching: {
    let package = Bundle.main.url(forResource: "$stem", withExtension: "mlmodelc")!  // Xcode compiles $path to it
    $load
})
""")
SWIFT_FUNCTION = Template('configuration.functionName = "$function"')
SWIFT_CAREFUL = Template("configuration.computeUnits = .cpuOnly  // $caution")
SWIFT_UPRIGHT = Template("""\
/// A picture upright, its middle on white, $width × $height: as those were that the model was trained on.
private func upright(_ picture: UIImage) -> CGImage {
    let format = UIGraphicsImageRendererFormat()
    format.scale = 1
    let size = CGSize(width: $width, height: $height)
    let scale = max(size.width / picture.size.width, size.height / picture.size.height)
    let (wide, high) = (scale * picture.size.width, scale * picture.size.height)
    let small = UIGraphicsImageRenderer(size: size, format: format).image { context in
        UIColor.white.setFill()
        context.fill(CGRect(origin: .zero, size: size))
        picture.draw(in: CGRect(x: (size.width - wide) / 2, y: (size.height - high) / 2, width: wide, height: high))
    }
    return small.cgImage!  // a renderer's picture has one
}
""")
SWIFT_PIXELS = Template("""\
/// A picture as the model wants it: pixels of 0–255, (1, $channels, $height, $width).
private func pixels(of picture: UIImage) -> [Float] {
    let (channels, height, width, bytesPerPixel) = ($channels, $height, $width, $stride)
    var bytes = [UInt8](repeating: 0, count: height * width * bytesPerPixel)
    bytes.withUnsafeMutableBytes { buffer in
        let context = CGContext(
            data: buffer.baseAddress, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * bytesPerPixel,
            space: $space, bitmapInfo: $alpha.rawValue)
        context?.draw(upright(picture), in: CGRect(x: 0, y: 0, width: width, height: height))
    }
    return (0..<channels).flatMap { channel in
        (0..<(height * width)).map { place in Float(bytes[place * bytesPerPixel + channel]) }
    }
}
""")
SWIFT_ARRAY = Template("""\
/// Values as Core ML takes them.
private func array(of values: [Float]) throws -> MLMultiArray {
    let array = try MLMultiArray(shape: [$shape], dataType: .float32)
    for (place, value) in values.enumerated() { array[place] = NSNumber(value: value) }
    return array
}
""")
SWIFT = Template("""\
import CoreML
import UIKit

$once
$prepare
/// $outputs.
func $part(_ given: $given) throws -> [String: MLMultiArray] {
    let input = try MLDictionaryFeatureProvider(dictionary: ["$input": array(of: $converted)])
    let output = try loaded.get().prediction(from: input)
    return Dictionary(uniqueKeysWithValues: [$names].map { ($$0, output.featureValue(for: $$0)!.multiArrayValue!) })
}
""")
SWIFT_EXECUTORCH = Template("""\
import ExecuTorch
import UIKit

/// Loaded once, and kept: loading takes longer than a call.
private let module = Module(filePath: Bundle.main.path(forResource: "$stem", ofType: "pte")!)  // $path
$prepare
/// $outputs.
func $part(_ given: $given) throws -> [[Float]] {
    let outputs: [Value] = try module.forward([Tensor<Float>($converted, shape: [$shape])])
    return outputs.map { output in
        let tensor: Tensor<Float> = output.tensor()!
        return tensor.scalars()
    }
}
""")
SWIFT_IMAGES = Template("""\
import CoreML
import UIKit

$once
/// $outputs; by name.
func $part(_ given: $given) throws -> MLFeatureProvider {
    let value = $value
    return try loaded.get().prediction(from: MLDictionaryFeatureProvider(dictionary: ["$input": value]))
}
$shown""")
SWIFT_IMAGE = Template("""\
try MLFeatureValue(
        cgImage: upright(given), pixelsWide: $width, pixelsHigh: $height, pixelFormatType: $format, options: nil)""")
SWIFT_SHOWN = Template("""
/// The picture in what `$part` returns.
func ${part}Picture(in output: MLFeatureProvider) -> UIImage? {
    guard let pixels = output.featureValue(for: "$output")?.imageBufferValue else { return nil }
    let image = CIImage(cvPixelBuffer: pixels)
    return CIContext().createCGImage(image, from: image.extent).map { UIImage(cgImage: $$0) }
}
""")
KOTLIN_PIXELS = Template("""
/** A picture as the model wants it, its middle on white: pixels of 0–255, (1, $channels, $height, $width). */
private fun pixels(picture: Bitmap): FloatArray {
    val scale = maxOf($width.toFloat() / picture.width, $height.toFloat() / picture.height)
    val (wide, high) = Pair(scale * picture.width, scale * picture.height)
    val place = RectF(($width - wide) / 2, ($height - high) / 2, ($width + wide) / 2, ($height + high) / 2)
    val small = Bitmap.createBitmap($width, $height, Bitmap.Config.ARGB_8888)
    Canvas(small).drawColor(Color.WHITE)
    val readable = picture.copy(Bitmap.Config.ARGB_8888, false) // one in the memory of the GPU is not
    Canvas(small).drawBitmap(readable, null, place, Paint(Paint.FILTER_BITMAP_FLAG))
    val colours = IntArray($width * $height)
    small.getPixels(colours, 0, $width, 0, 0, $width, $height)
    return FloatArray($channels * $width * $height) { i ->
        val colour = colours[i % colours.size]
        $pixel
    }
}
""")
KOTLIN_GREY = "0.299f * Color.red(colour) + 0.587f * Color.green(colour) + 0.114f * Color.blue(colour)"
KOTLIN_COLOUR = "listOf(Color.red(colour), Color.green(colour), Color.blue(colour))[i / colours.size].toFloat()"
KOTLIN_IMPORTS = "".join(f"import android.graphics.{name}\n" for name in ("Bitmap", "Canvas", "Color", "Paint", "RectF"))
KOTLIN = Template("""\
${imports}import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor
$prepare
/** Loaded once, from where the app has put $path: loading takes longer than a call. One thread is best for small nets. */
class $kind(path: String) : AutoCloseable {
    private val module = Module.load(path, Module.LOAD_MODE_FILE, 1)

    /** $outputs. */
    fun $part(given: $given): List<FloatArray> {
        val input = Tensor.fromBlob($converted, longArrayOf($shape))
        return module.forward(EValue.from(input)).map { it.toTensor().dataAsFloatArray }
    }

    override fun close() = module.destroy()
}
""")

JAVASCRIPT_PIXELS = Template("""
/** A picture as the model wants it, its middle on white: pixels of 0–255, (1, $channels, $height, $width). */
function pixels(picture) {
  const context = new OffscreenCanvas($width, $height).getContext("2d");
  const scale = Math.max($width / picture.width, $height / picture.height);
  const [wide, high] = [scale * picture.width, scale * picture.height];
  context.fillStyle = "white";
  context.fillRect(0, 0, $width, $height);
  context.drawImage(picture, ($width - wide) / 2, ($height - high) / 2, wide, high);
  const { data } = context.getImageData(0, 0, $width, $height);
  const area = $width * $height;
  return Float32Array.from({ length: $channels * area }, (_, i) => {
    const place = 4 * (i % area);
    return $pixel;
  });
}
""")
JAVASCRIPT_GREY = "0.299 * data[place] + 0.587 * data[place + 1] + 0.114 * data[place + 2]"
JAVASCRIPT_COLOUR = "data[place + Math.floor(i / area)]"
JAVASCRIPT = Template("""\
import * as ort from "onnxruntime-web";

const session = ort.InferenceSession.create("$path"); // once: loading takes longer than a call
$prepare
/** $outputs. `given` is $given. */
export async function $part(given) {
  const found = await (await session).run({ $input: new ort.Tensor("float32", $converted, [$shape]) });
  return [$names].map((name) => found[name].data);
}
""")


def write_readme(folder: Path) -> None:
    """Say how an app loads the files of a folder, by its manifest; somebody else's `README.md` is left as it is."""
    path = folder / NAME
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        return
    write_text(path, readme(describe(folder)))


def readme(manifest: Mapping[str, Any]) -> str:
    """The page for the files of a manifest."""
    model = manifest["model"]
    lines = [
        MARK,
        "",
        f"# Files of the model {model['class']}",
        "",
        "| file | part | precision | bytes | for |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{each['path']}` | {each['part']} | {each['precision']} | {each['bytes']:,} | {running(each)} |"
        for each in manifest["files"]
    ]
    lines += [
        "",
        WHICH,
        "",
        "`manifest.json` says what goes into each and what comes out; the meaning of a decoder's `z` is how the app draws it. "
        "Each snippet is a file of its own.",
        "",
    ]
    for runtime, language in LANGUAGES.items():
        for entry in one_a_part(manifest["files"], runtime):
            lines += [
                f"## {entry['part'].capitalize()} in {language}{', by ExecuTorch' if runtime == IN_EXECUTORCH else ''}",
                "",
                f"For `{entry['path']}`{needing(entry)}{having(entry)}. {NOT_COMPILED}",
                "",
                f"```{language.lower()}",
                SNIPPETS[runtime](entry).rstrip(),
                "```",
                "",
            ]
    return "\n".join(lines)


def running(entry: Mapping[str, Any]) -> str:
    """What runs a file, and what an app has to mind.

    Example:
        >>> running({"format": "coreml", "target": "iOS18", "pictures": "images"}), running({"format": "onnx"})
        ('iOS18 or later; pictures are images', 'browsers, servers')
    """
    target, sizes = entry.get("target"), entry.get("batch_sizes", [1])
    minded = [
        WHERE[runtime_of(entry)].format(f"{target} or later" if target else "iOS"),
        "pictures are images" if entry.get("pictures") == "images" else "",
        f"batches of {', '.join(map(str, sizes))}" if len(sizes) > 1 else "",
        f"caution: {entry['caution']}" if entry.get("caution") else "",
    ]
    return "; ".join(each for each in minded if each)


def needing(entry: Mapping[str, Any]) -> str:
    """What a file asks of where it runs."""
    parts = [entry.get("target") and f"{entry['target']} or later", entry.get("opset") and f"operator set {entry['opset']}"]
    return "".join(f", {part}" for part in parts if part)


def having(entry: Mapping[str, Any]) -> str:
    """What an app has to have to run a file, in the version that it was verified with."""
    package, distribution = RUNTIMES.get(runtime_of(entry), ("", ""))
    version = entry.get("versions", {}).get(distribution)
    return f", with {package}, {version} here" if version else ""


def loading(entry: Mapping[str, Any]) -> str:
    """How Swift loads a package: one of its functions, or off what computes it wrong."""
    settings = [
        *([SWIFT_FUNCTION.substitute(entry)] if entry.get("function") else []),
        *([SWIFT_CAREFUL.substitute(entry)] if entry.get("caution") else []),
    ]
    return SWIFT_CONFIGURED.substitute(settings="\n    ".join(settings)) if settings else SWIFT_LOAD


def swift(entry: Mapping[str, Any]) -> str:
    """A function that calls a Core ML package."""
    once = SWIFT_ONCE.substitute(path=entry["path"], stem=Path(entry["path"]).stem, load=loading(entry))
    common = {**called(entry), "once": once}
    if entry.get("pictures") == "images":
        return swift_with_images(entry, common)
    prepare, given = prepared(entry)
    pieces = [prepare, SWIFT_ARRAY.substitute(common)]
    return SWIFT.substitute(common, prepare="\n".join(piece for piece in pieces if piece), **given)


def swift_executorch(entry: Mapping[str, Any]) -> str:
    """A function that calls an ExecuTorch program that Core ML runs."""
    prepare, given = prepared(entry)
    before = {"stem": Path(entry["path"]).stem, "prepare": f"\n{prepare}" if prepare else ""}
    return SWIFT_EXECUTORCH.substitute(called(entry), **before, **given)


def prepared(entry: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
    """What makes numbers of what Swift is given, and what that is."""
    (source,) = entry["inputs"]
    if len(source["shape"]) == 2:
        return "", {"given": "[Float]", "converted": "given"}
    _, channels, height, width = source["shape"]
    grey = {"stride": 1, "space": "CGColorSpaceCreateDeviceGray()", "alpha": "CGImageAlphaInfo.none"}
    colour = {"stride": 4, "space": "CGColorSpaceCreateDeviceRGB()", "alpha": "CGImageAlphaInfo.noneSkipLast"}
    sizes = {"channels": channels, "height": height, "width": width, **(grey if channels == 1 else colour)}
    text = f"{SWIFT_UPRIGHT.substitute(sizes)}\n{SWIFT_PIXELS.substitute(sizes)}"
    return text, {"given": "UIImage", "converted": "pixels(of: given)"}


def swift_with_images(entry: Mapping[str, Any], common: Mapping[str, str]) -> str:
    """A function that calls a Core ML package whose pictures are images."""
    (source,) = entry["inputs"]
    made = [each["name"] for each in entry["outputs"] if each["type"].startswith("image")]
    shown = "".join(SWIFT_SHOWN.substitute(part=entry["part"], output=name) for name in made)
    if len(source["shape"]) == 2:
        value, array = "MLFeatureValue(multiArray: try array(of: given))", SWIFT_ARRAY.substitute(common)
        return SWIFT_IMAGES.substitute(common, given="[Float]", value=value, shown=f"\n{array}{shown}")
    _, channels, height, width = source["shape"]
    kind = "kCVPixelFormatType_OneComponent8" if channels == 1 else "kCVPixelFormatType_32BGRA"
    value = SWIFT_IMAGE.substitute(width=width, height=height, format=kind)
    upright = SWIFT_UPRIGHT.substitute(width=width, height=height)
    return SWIFT_IMAGES.substitute(common, given="UIImage", value=value, shown=f"\n{upright}{shown}")


def kotlin(entry: Mapping[str, Any]) -> str:
    """A function that calls an ExecuTorch program."""
    (source,) = entry["inputs"]
    common = called(entry)
    if len(source["shape"]) == 2:
        return KOTLIN.substitute(common, imports="", prepare="", given="FloatArray", converted="given")
    _, channels, height, width = source["shape"]
    sizes = {"channels": channels, "height": height, "width": width, "pixel": KOTLIN_GREY if channels == 1 else KOTLIN_COLOUR}
    prepare = {"imports": KOTLIN_IMPORTS, "prepare": KOTLIN_PIXELS.substitute(sizes)}
    return KOTLIN.substitute(common, **prepare, given="Bitmap", converted="pixels(given)")


def javascript(entry: Mapping[str, Any]) -> str:
    """A function that calls an ONNX model in a browser."""
    (source,) = entry["inputs"]
    common = called(entry)
    if len(source["shape"]) == 2:
        return JAVASCRIPT.substitute(common, prepare="", given="a Float32Array", converted="given")
    _, channels, height, width = source["shape"]
    pixel = JAVASCRIPT_GREY if channels == 1 else JAVASCRIPT_COLOUR
    prepare = JAVASCRIPT_PIXELS.substitute(channels=channels, height=height, width=width, pixel=pixel)
    return JAVASCRIPT.substitute(common, prepare=prepare, given="an ImageBitmap", converted="pixels(given)")


def called(entry: Mapping[str, Any]) -> dict[str, str]:
    """What a file is called by, and what comes out of it."""
    outputs = ", ".join(f"{output['name']}: {output['meaning']}" for output in entry["outputs"])
    shape = ", ".join(map(str, entry["inputs"][0]["shape"]))
    kind = entry["part"].capitalize()
    return {
        "part": entry["part"],
        "kind": kind,
        "path": entry["path"],
        "shape": shape,
        "input": entry["inputs"][0]["name"],
        "names": ", ".join(f'"{output["name"]}"' for output in entry["outputs"]),
        "outputs": outputs[0].upper() + outputs[1:],
    }


SNIPPETS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "coreml": swift,
    IN_EXECUTORCH: swift_executorch,
    "executorch": kotlin,
    "onnx": javascript,
}
