# The plotting library that reports hold: Dygraphs_JS, Dygraphs_CSS, Dygraphs_LICENCE (Debian's package libjs-dygraphs).
find_file(Dygraphs_JS dygraph.min.js PATHS /usr/share/javascript/dygraphs NO_DEFAULT_PATH)
find_file(Dygraphs_CSS dygraph.min.css PATHS /usr/share/javascript/dygraphs NO_DEFAULT_PATH)
find_file(Dygraphs_LICENCE copyright PATHS /usr/share/doc/libjs-dygraphs NO_DEFAULT_PATH)
mark_as_advanced(Dygraphs_JS Dygraphs_CSS Dygraphs_LICENCE)
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Dygraphs REQUIRED_VARS Dygraphs_JS Dygraphs_CSS Dygraphs_LICENCE
                                  REASON_FAILURE_MESSAGE "install libjs-dygraphs, as tools/setup.sh does")
