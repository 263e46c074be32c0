"""Research methods behind one entry: `mobileicsa methods` lists them, `mobileicsa methods run NAME` runs one."""
