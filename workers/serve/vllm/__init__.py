"""vLLM servers as backends: those of VLLM_URLS, or one that the endpoint starts itself."""
