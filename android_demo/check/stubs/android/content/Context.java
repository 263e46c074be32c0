package android.content;

public abstract class Context {
    public final String getString(int id) { throw new UnsupportedOperationException(); }
    public final String getString(int id, Object... arguments) { throw new UnsupportedOperationException(); }
    public java.io.File getExternalFilesDir(String type) { throw new UnsupportedOperationException(); }
    public void startActivity(Intent intent) {}
}
