package org.pytorch.executorch;

public class Module {
    public static final int LOAD_MODE_MMAP = 1;
    public static Module load(String path, int loadMode, int threads) { throw new UnsupportedOperationException(); }
    public EValue[] execute(String method, EValue... inputs) { throw new UnsupportedOperationException(); }
    public String[] getMethods() { throw new UnsupportedOperationException(); }
    public void loadMethod(String method) {}
    public void destroy() {}
}
