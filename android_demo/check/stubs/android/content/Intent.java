package android.content;

public class Intent {
    public Intent(Context context, Class<?> target) {}
    public String getStringExtra(String name) { throw new UnsupportedOperationException(); }
    public int getIntExtra(String name, int otherwise) { throw new UnsupportedOperationException(); }
}
