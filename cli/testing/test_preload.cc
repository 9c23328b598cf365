extern "C" const char foldswap_test_preload[] = "loaded";
