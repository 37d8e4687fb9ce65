// Part of nvcc, which torch's wheels do not bring; C needs nothing of it.
