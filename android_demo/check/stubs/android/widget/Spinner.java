package android.widget;

public class Spinner extends AdapterView<SpinnerAdapter> {
    public SpinnerAdapter getAdapter() { throw new UnsupportedOperationException(); }
    public void setAdapter(SpinnerAdapter adapter) {}
}
