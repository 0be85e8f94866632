# cpp-httplib, a small HTTP server. Makes Httplib::httplib (Debian's package libcpp-httplib-dev, which is compiled).
find_package(PkgConfig QUIET)
if(PkgConfig_FOUND)
  pkg_check_modules(Httplib QUIET IMPORTED_TARGET cpp-httplib)
endif()
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Httplib REQUIRED_VARS Httplib_LINK_LIBRARIES
                                  REASON_FAILURE_MESSAGE "install libcpp-httplib-dev, as tools/setup.sh does")
if(Httplib_FOUND AND NOT TARGET Httplib::httplib)
  add_library(Httplib::httplib ALIAS PkgConfig::Httplib)
endif()
