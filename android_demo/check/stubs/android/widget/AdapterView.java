package android.widget;

public abstract class AdapterView<T extends Adapter> extends android.view.View {
    public interface OnItemSelectedListener {
        void onItemSelected(AdapterView<?> parent, android.view.View view, int position, long id);
        void onNothingSelected(AdapterView<?> parent);
    }
    public abstract T getAdapter();
    public abstract void setAdapter(T adapter);
    public int getSelectedItemPosition() { throw new UnsupportedOperationException(); }
    public final OnItemSelectedListener getOnItemSelectedListener() { throw new UnsupportedOperationException(); }
    public void setOnItemSelectedListener(OnItemSelectedListener listener) {}
}
