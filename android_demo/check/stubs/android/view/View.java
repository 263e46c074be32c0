package android.view;

public class View {
    public static final int VISIBLE = 0;
    public static final int GONE = 8;
    public interface OnClickListener { void onClick(View view); }
    public void setOnClickListener(OnClickListener listener) {}
    public boolean isEnabled() { throw new UnsupportedOperationException(); }
    public void setEnabled(boolean enabled) {}
    public int getVisibility() { throw new UnsupportedOperationException(); }
    public void setVisibility(int visibility) {}
}
