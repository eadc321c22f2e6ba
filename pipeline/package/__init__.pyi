from .format import describe as describe
from .format import load as load
from .format import open_package as open_package
from .format import write as write
from .package import DecoderPackage as DecoderPackage
