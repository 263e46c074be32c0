package ai.onnxruntime;

public final class OrtEnvironment implements AutoCloseable {
    public static OrtEnvironment getEnvironment() { throw new UnsupportedOperationException(); }
    public OrtSession createSession(String path, OrtSession.SessionOptions options)
        throws OrtException { throw new UnsupportedOperationException(); }
    public void close() {}
}
