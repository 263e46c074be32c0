package ai.onnxruntime;

public class OrtSession implements AutoCloseable {
    public Result run(java.util.Map<String, ? extends OnnxTensorLike> inputs) throws OrtException {
        throw new UnsupportedOperationException();
    }
    public void close() throws OrtException {}
    public static class SessionOptions implements AutoCloseable {
        public enum OptLevel { NO_OPT, BASIC_OPT, EXTENDED_OPT, ALL_OPT }
        public void setIntraOpNumThreads(int count) throws OrtException {}
        public void setOptimizationLevel(OptLevel level) throws OrtException {}
        public void addConfigEntry(String key, String value) throws OrtException {}
        public void close() {}
    }
    public static class Result implements AutoCloseable {
        public OnnxValue get(int index) { throw new UnsupportedOperationException(); }
        public int size() { throw new UnsupportedOperationException(); }
        public void close() {}
    }
}
