"""Flags of a usable source, as the manifest records them."""

# A NIfTI's two affines, both given, place a corner of the volume more than a voxel apart.
FORMS_DISAGREE = "sform_qform"

# Another subject's scan is the same one.
SAME_SCAN = "same_scan"

# What the report says of each.
WORDS = {
    FORMS_DISAGREE: "its qform lies more than a voxel away from its sform, which is used",
    SAME_SCAN: "another subject's scan is the same",
}
