package org.pytorch.executorch;

public abstract class Tensor {
    public static java.nio.LongBuffer allocateLongBuffer(int count) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(java.nio.ByteBuffer data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(java.nio.LongBuffer data, long[] shape) { throw new UnsupportedOperationException(); }
    public static Tensor fromBlob(java.nio.FloatBuffer data, long[] shape) { throw new UnsupportedOperationException(); }
    public byte[] getDataAsByteArray() { throw new UnsupportedOperationException(); }
    public float[] getDataAsFloatArray() { throw new UnsupportedOperationException(); }
}
