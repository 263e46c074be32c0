package android.widget;

public class SeekBar extends android.view.View {
    public int getMax() { throw new UnsupportedOperationException(); }
    public int getProgress() { throw new UnsupportedOperationException(); }
    public void setProgress(int progress) {}
}
