"""A pydicom decoder plugin: 12-bit JPEG Extended (Process 2 and 4) by GDCM.

pydicom's own GDCM plugin leaves this precision out, and the package that covers it is GPL-3. GDCM 3.2 decodes it: its
values match the published reference pixels of pydicom's test file ``JPEG-lossy.dcm``.
"""

from __future__ import annotations

from pydicom import uid

DECODER_DEPENDENCIES = {uid.JPEGExtended12Bit: ("gdcm>=3.2",)}


def is_available(transfer_syntax: str) -> bool:
    """True for the one transfer syntax this adds."""
    return transfer_syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner) -> bytes:
    """Decode one encoded frame; pydicom's plugin contract."""
    import gdcm

    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(source)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    syntax = gdcm.TransferSyntax.GetTSType(str.__str__(runner.transfer_syntax))
    image.SetTransferSyntax(gdcm.TransferSyntax(syntax))
    bits = runner.bits_stored
    image.SetPixelFormat(
        gdcm.PixelFormat(runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation)
    )
    decoded = image.GetBuffer()
    if not decoded:
        raise ValueError("GDCM could not decode the JPEG frame")
    return decoded.encode("utf-8", "surrogateescape")


def register() -> None:
    """Add the plugin to pydicom's decoder, once."""
    from pydicom.pixels.decoders import JPEGExtended12BitDecoder

    if "gdcm-12bit" not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin("gdcm-12bit", ("brainmri.dicom.jpeg12", "decode_frame"))
